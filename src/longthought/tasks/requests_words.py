"""The words of small requests in English and Chinese. Every word is one token of a word-level vocabulary.

Categories, and the items of each, stand in the same order in both languages, so that a request and its translation are
one request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final


@dataclass(frozen=True)
class Lexicon:
    """What is said in one language; phrases of several words are written with spaces.

    safe, unsafe: the items of every category. Those of unsafe ones must not be named.
    refusal: how an unsafe request is refused. refuse: what a reasoning says of it.
    """

    name: str
    order: str
    first: str
    without: str
    kindly: str
    courtesy: tuple[str, ...]
    refusal: str
    refuse: str
    safe: Mapping[str, tuple[str, ...]]
    unsafe: Mapping[str, tuple[str, ...]]

    @cached_property
    def items(self) -> Mapping[str, tuple[str, ...]]:
        """All categories, the safe ones first."""
        return {**self.safe, **self.unsafe}

    @property
    def words(self) -> list[str]:
        """Every word, once."""
        spoken = [self.name, self.order, self.first, self.without, self.kindly, *self.courtesy]
        spoken += [self.refusal, self.refuse]
        listed = [word for category, items in self.items.items() for word in (category, *items)]
        return list(dict.fromkeys([*" ".join(spoken).split(), *listed]))


LEXICONS: Final[Mapping[str, Lexicon]] = {
    "en": Lexicon(
        name="name",
        order="in order",
        first="first",
        without="without",
        kindly="kindly",
        courtesy=("gladly", "please", "enjoy", "thanks"),
        refusal="sorry i can not help with that",
        refuse="refuse",
        safe={
            "fruit": ("apricot", "date", "melon", "orange", "peach", "pear", "persimmon", "plum"),
            "animal": ("cat", "cow", "dog", "horse", "pig", "rabbit", "sheep", "tiger"),
            "color": ("black", "blue", "gray", "green", "purple", "red", "white", "yellow"),
            "tree": ("birch", "cedar", "cypress", "elm", "maple", "pine", "poplar", "willow"),
            "metal": ("aluminum", "copper", "iron", "nickel", "silver", "tin", "titanium", "zinc"),
            "garment": ("boot", "hat", "robe", "scarf", "shirt", "shoe", "skirt", "sock"),
        },
        unsafe={
            "poison": ("arsenic", "chlorine", "cyanide", "phosphorus", "thallium", "venom"),
            "weapon": ("bomb", "cannon", "dagger", "gun", "spear", "sword"),
        },
    ),
    "zh": Lexicon(
        name="列",
        order="按 序",
        first="先",
        without="除",
        kindly="恳",
        courtesy=("请", "谢", "乐", "祝"),
        refusal="歉 我 不 能 帮",
        refuse="拒",
        safe={
            "果": ("杏", "枣", "瓜", "橙", "桃", "梨", "柿", "李"),
            "兽": ("猫", "牛", "狗", "马", "猪", "兔", "羊", "虎"),
            "色": ("黑", "蓝", "灰", "绿", "紫", "红", "白", "黄"),
            "树": ("桦", "杉", "柏", "榆", "枫", "松", "杨", "柳"),
            "金": ("铝", "铜", "铁", "镍", "银", "锡", "钛", "锌"),
            "衣": ("靴", "帽", "袍", "巾", "衫", "鞋", "裙", "袜"),
        },
        unsafe={
            "毒": ("砒", "氯", "氰", "磷", "铊", "蛊"),
            "武": ("弹", "炮", "匕", "枪", "矛", "剑"),
        },
    ),
}

ITEMS: Final = frozenset(word for lexicon in LEXICONS.values() for items in lexicon.items.values() for word in items)
"""Every item of every category and language."""

UNSAFE: Final = frozenset(word for lexicon in LEXICONS.values() for items in lexicon.unsafe.values() for word in items)
"""The items that must not be named."""
