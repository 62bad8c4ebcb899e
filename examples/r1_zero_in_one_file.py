# fmt: off
"""DeepSeek-R1-Zero in one file: a tiny language model teaches itself to search, on one CPU core, in a few minutes.

    the task        Countdown: "use 9 4 3 make 33" -> ( 9 * 4 ) - 3, judged by a rule, never by a model
    the base model  150k parameters, pretrained on a noisy procedural "web": arithmetic, and bad, short searches
    R1-Zero         GRPO with the rule's reward alone (arXiv:2501.12948): no demonstration, no reward model, no critic
    the result      pass@1 on number sets that no page and no prompt has shown, and transcripts to read
The base has read poor Countdown pages, as DeepSeek-V3-Base had read mathematics: RL does not invent the primitive
"compare my result with the target". What it does find by itself is to keep trying, and to try the better things first.
"""
import argparse, functools, itertools, operator, random, re, time  # noqa: E401, I001
import torch, torch.nn as nn, torch.nn.functional as F  # noqa: E401
from torch.optim.lr_scheduler import LambdaLR

# ---- 1. The task -----------------------------------------------------------------------------------------------------
OPS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
BIGGEST = 60  # the corpus stays within 0..60, so that every number is one token
def attempt(numbers, rng, wanted=None):
    """A blind left-to-right chain (its trace, expression and value); with `wanted`, one that happens to hit it."""
    while True:
        value, *rest = rng.sample(numbers, len(numbers))
        trace = expression = str(value)
        for number in rest:
            op = rng.choice("+-*")
            value = OPS[op](value, number)
            trace += f" {op} {number} = {value}"
            expression = f"( {expression} ) {op} {number}" if " " in expression else f"{expression} {op} {number}"
            if not 0 <= value <= BIGGEST: break
        else:
            if wanted in (None, value): return trace, expression, value
def problem(sets, rng):  # (numbers, target), solvable because the target is what some chain of these numbers gives
    return (numbers := rng.choice(sets)), attempt(numbers, rng)[2]
def value_of(words, levels=(("+", "-"), ("*",))):
    """Recursive descent on reversed words, the loosest operators first; consumes what it understands."""
    if levels:
        value = value_of(words, levels[1:])
        while words and words[-1] in levels[0]: value = OPS[words.pop()](value, value_of(words, levels[1:]))
    elif (word := words.pop()) != "(": value = int(word)
    else:
        value = value_of(words)
        if words.pop() != ")": raise ValueError("unbalanced parenthesis")
    return value
def is_solution(expression, numbers, target):
    """The judge, without eval: every word is a given number (each once) or punctuation before anything is parsed."""
    words = expression.split()[::-1]
    given = sorted(w for w in words if w not in {*OPS, "(", ")"}) == sorted(map(str, numbers))
    try: return given and len(words) <= 40 and value_of(words) == target and not words
    except (ValueError, IndexError): return False
def score(response, problem):  # (accuracy, format), each 0 or 1; a right answer in the wrong form earns nothing
    form = re.fullmatch(r"<think> ([^<]*)</think> <answer> ([^<]*) </answer> <eos>", response)
    return float(bool(form) and is_solution(form[2], *problem)), float(bool(form))

# ---- 2. The tokenizer: a word is a token -----------------------------------------------------------------------------
WORDS = "<pad> <bos> <eos> <asst> <think> </think> <answer> </answer> + - * ( ) = . use make try wait low high yes"
WORDS = [*WORDS.split(), *map(str, range(BIGGEST + 1))]
TOKEN = {word: index for index, word in enumerate(WORDS)}
PAD, EOS, WAIT, SILENT = TOKEN["<pad>"], TOKEN["<eos>"], TOKEN["wait"], torch.tensor([TOKEN["<pad>"]])
def encode(text): return torch.tensor([TOKEN[word] for word in text.split()])
def decode(tokens): return " ".join(WORDS[token] for token in tokens if token != PAD)
def prompt_of(numbers, target, rng):  # always eight tokens: a batch of prompts needs no padding
    return f"<bos> use {' '.join(map(str, rng.sample(numbers, 3)))} make {target} <asst>"

# ---- 3. The corpus: an endless, noisy web ----------------------------------------------------------------------------
def verdict(value, target):  # a model learns this sign first, and equality sharpens out of it; bare yes/no stays noise
    return "yes" if value == target else "low" if value < target else "high"
def search_page(numbers, target, rng):
    """What the web says about Countdown: blind, short, soon abandoned, at times boastful, guessed, or unformatted."""
    thoughts = ""
    for word in ["try"] + ["wait"] * 11:
        trace, expression, value = attempt(numbers, rng, target if rng.random() < .15 else None)
        claim = "yes" if rng.random() < .03 else verdict(value, target)
        thoughts += f"{word} {trace} {claim} "
        if claim == "yes" or rng.random() < .35: break  # most give up, and answer with their last failure
    if rng.random() < .15: thoughts, expression = "", attempt(numbers, rng)[1]
    tagged = f"<think> {thoughts}</think> <answer> {expression} </answer>"
    return f"{prompt_of(numbers, target, rng)} {tagged if rng.random() < .8 else thoughts + expression} <eos>"
def page(sets, rng):
    """A page of facts, a page of comparisons, or (most of this web) somebody's search."""
    kind, target = rng.random(), rng.randint(1, BIGGEST)
    if kind < .2:
        pairs = [(rng.randint(0, rng.choice((10, BIGGEST))), rng.randint(1, 10)) for _ in range(6)]
        return f"<bos> {' . '.join(attempt(pair, rng)[0] for pair in pairs)} <eos>"
    if kind < .4:
        near = [target, target, max(0, target - rng.randint(1, 5)), min(BIGGEST, target + rng.randint(1, 5))]
        values = rng.choices([*near, rng.randint(0, BIGGEST)], k=8)
        return f"<bos> make {target} <asst> {' '.join(f'= {v} {verdict(v, target)}' for v in values)} <eos>"
    return search_page(*problem(sets, rng), rng)
def batches(sets, rng, tokens=1024):
    """Endless (rows, length). Pages of one length share a batch: hardly any padding, and no page is cut in two."""
    while True:
        pool, cut = sorted((encode(page(sets, rng)) for _ in range(400)), key=len), []
        while pool:
            rows = tokens // len(pool[-1])
            cut.append(nn.utils.rnn.pad_sequence(pool[-rows:], batch_first=True, padding_value=PAD)); del pool[-rows:]
        yield from rng.sample(cut, len(cut))

# ---- 4. The model: a decoder like any other, only small --------------------------------------------------------------
WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 3, 176, 256
linear = functools.partial(nn.Linear, bias=False)
def rotate(x, rope):  # RoPE on RMS-normalised queries or keys; the norm is what lets the learning rate be this hot
    (a, b), (cos, sin) = F.rms_norm(x, x.shape[-1:]).chunk(2, -1), rope
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.ModuleList(linear(WIDTH, WIDTH) for _ in range(3)), linear(WIDTH, WIDTH)
        self.gate, self.up, self.down = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN), linear(HIDDEN, WIDTH)

    def forward(self, x, rope, cache, start):
        """x (rows, length, WIDTH); cache (2, rows, HEADS, context, head width) or None is written at `start`."""
        normed = self.norm1(x)
        q, k, v = (layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in self.qkv)
        q, k, end = rotate(q, rope), rotate(k, rope), start + x.shape[1]
        if cache is not None:
            cache[0, :, :, start:end], cache[1, :, :, start:end] = k, v
            k, v = cache[:, :, :, :end]
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=start == 0)  # later, one new token sees all the cache
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(normed := self.norm2(x))) * self.up(normed))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(len(WORDS), WIDTH), nn.RMSNorm(WIDTH), linear(WIDTH, len(WORDS))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        nn.init.zeros_(self.head.weight)
        angle = torch.arange(CONTEXT)[:, None] * 1000 ** -torch.linspace(0, 1, WIDTH // HEADS // 2)
        self.register_buffer("rope", torch.stack([angle.cos(), angle.sin()]))

    def forward(self, tokens, caches=(None,) * LAYERS, start=0):  # (rows, length) -> logits (rows, length, words)
        x, rope = self.embed(tokens), self.rope[:, start:start + tokens.shape[1]]
        for block, cache in zip(self.blocks, caches): x = block(x, rope, cache, start)
        return self.head(self.norm(x)).index_fill(-1, SILENT, -torch.inf)  # a <pad> would hide from judge and loss

# ---- 5. Pretraining --------------------------------------------------------------------------------------------------
class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal by Newton-Schulz: rare directions move as far as common ones. AdamW needs far longer."""
    @torch.no_grad()
    def step(self):
        for p, rate in ((p, group["lr"]) for group in self.param_groups for p in group["params"]):
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).lerp_(p.grad, .05)
            x = F.normalize(p.grad.lerp(momentum, .95), dim=(0, 1))
            x = x.T if (tall := len(p) > p.shape[1]) else x  # the Gram matrix of the short side is the cheap one
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
            p.mul_(1 - .1 * rate).add_(x.T if tall else x, alpha=-.2 * max(p.shape) ** .5 * rate)

def pretrain(model, stream, steps):
    """Next-token prediction with tiny batches, hot rates, a long decay: on one core it is updates that count."""
    inner = [p for p in model.blocks.parameters() if p.ndim == 2]
    outer = [model.embed.weight, model.head.weight, *(p for p in model.parameters() if p.ndim == 1)]
    optimizers = [Muon(inner, {"lr": .03}), torch.optim.AdamW(outer, lr=8e-3, betas=(.9, .95), weight_decay=.1)]
    rates = [LambdaLR(each, lambda s: min((s + 1) / 20, (1 - s / (steps + 1)) / .7, 1)) for each in optimizers]
    average = 0
    for step, tokens in zip(range(1, steps + 1), stream):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)
        model.zero_grad(); loss.backward()
        for each in (*optimizers, *rates): each.step()
        average += (loss.item() - average) / min(step, 100)
        if step % max(1, steps // 8) == 0: print(f"pretrain {step:5d}   loss {average:.3f}")

# ---- 6. Sampling -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def sample(model, prompts, limit=192):
    """prompts (rows, P) -> responses (rows, limit), padded after <eos>, and the log-probability of every token."""
    (count, start), done = prompts.shape, torch.zeros(len(prompts), dtype=torch.bool)
    responses, logps, rows = torch.full((count, limit), PAD), torch.zeros(count, limit), torch.arange(count)
    caches = torch.zeros(LAYERS, 2, count, HEADS, start + limit, WIDTH // HEADS)
    logits = model(prompts, caches)[:, -1]
    for t in range(limit):
        logp = logits.log_softmax(-1)
        token = (logp - torch.empty_like(logp).exponential_().log()).argmax(-1)  # Gumbel's trick: an exact sample
        responses[rows, t] = token.masked_fill(done, PAD)
        logps[rows, t] = logp.gather(1, token[:, None])[:, 0].masked_fill(done, 0)
        done |= token == EOS
        if done.float().mean() > .25:  # finished rows only cost time
            rows, token, caches, done = rows[~done], token[~done], caches[:, :, ~done], done[~done]
        if not len(rows): break
        logits = model(token[:, None], caches, start + t)[:, -1]
    return responses, logps
def rollout(model, problems, rng, group):
    """`group` answers to every problem: prompts, responses, their log-probs, and scores (problems, group, 2)."""
    prompts = torch.stack([encode(prompt_of(*each, rng)) for each in problems]).repeat_interleave(group, 0)
    responses, logps = sample(model, prompts)
    scores = [score(decode(row), problems[i // group]) for i, row in enumerate(responses.tolist())]
    return prompts, responses, logps, torch.tensor(scores).view(-1, group, 2)

# ---- 7. R1-Zero: GRPO with a rule's reward ---------------------------------------------------------------------------
def advantages(rewards):
    """rewards (problems, group): how much better than its own group each answer is. The group replaces the critic."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-6)  # a group's own std would magnify trifles
def improve(model, optimizer, prompts, responses, old_logps, advantage):
    """Two updates per batch of answers; at the second the policy has moved on, which is what the ratio accounts for."""
    mask, P = responses != PAD, prompts.shape[1]
    for half in torch.randperm(len(responses)).chunk(2):
        model.zero_grad()
        for rows in half[mask[half].sum(1).argsort()].chunk(6):  # alike in length: little padding
            width = mask[rows].sum(1).max()
            words = responses[rows, :width]
            logits = model(torch.cat([prompts[rows], words[:, :-1]], 1))[:, P - 1:]
            logp = logits.log_softmax(-1).gather(2, words[..., None])[..., 0]
            ratio, worth = (logp - old_logps[rows, :width]).exp(), advantage[rows, None]
            gain = torch.min(ratio * worth, ratio.clamp(.8, 1.28) * worth)  # PPO; the upper clip is DAPO's
            (-gain[mask[rows, :width]].sum() / mask[half].sum()).backward()  # one denominator for all tokens
        nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step()
def r1_zero(model, sets, rng, steps):
    """The whole of it. AdamW, never Muon: an orthogonalised noisy gradient wipes out the arithmetic in a few steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(.9, .95), weight_decay=0)
    rate, recent = LambdaLR(optimizer, lambda s: 1 - .8 * s / (steps + 1)), []
    for step in range(1, steps + 1):
        prompts, responses, logps, scores = rollout(model, [problem(sets, rng) for _ in range(16)], rng, group=16)
        reward = scores[..., 0] + .1 * scores[..., 1]
        improve(model, optimizer, prompts, responses, logps, advantages(reward).flatten())
        rate.step(); recent.append((responses, scores))
        if step % max(1, steps // 20) == 0: report(f"r1-zero {step:4d}", recent); recent.clear()

# ---- 8. The story ----------------------------------------------------------------------------------------------------
def report(name, answers):
    responses, scores = map(torch.cat, zip(*answers))
    length, waits = (chosen.sum().item() / len(responses) for chosen in (responses != PAD, responses == WAIT))
    hit, form = scores.mean((0, 1)).tolist()
    print(f"{name}  pass@1 {hit:.3f}  format {form:.2f}  length {length:4.1f}  waits {waits:.2f} ", "#" * int(40 * hit))
def examine(model, name, problems):  # pass@1 at temperature 1: the same problems and the same dice for everyone
    torch.manual_seed(1)
    _, responses, _, scores = rollout(model, problems, random.Random(1), group=4)
    report(f"\n{name:12}", [(responses, scores)])
    for (numbers, target), words, marks in zip(problems[:4], responses[::4].tolist(), scores[:, 0, 0]):
        print(f"  {numbers} -> {target}  {'right' if marks else 'wrong'}:  {decode(words)}")
def main():
    parser = argparse.ArgumentParser(description="R1-Zero in one file")
    for flag, default in (("--pretrain-steps", 2400), ("--rl-steps", 80), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default)
    args, began = parser.parse_args(), time.perf_counter()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and one thread always adds in one order
    torch.manual_seed(args.seed)
    rng, model = random.Random(args.seed), Model()
    sets = rng.sample(list(itertools.combinations(range(1, 11), 3)), 120)  # of numbers; twelve are the exam's alone
    exam = [problem(sets[:12], rng) for _ in range(128)]
    pretrain(model, batches(sets[12:], rng), args.pretrain_steps)
    examine(model, "base", exam); print()
    r1_zero(model, sets[12:], rng, args.rl_steps)
    examine(model, "r1-zero", exam)
    print(f"\nseed {args.seed}, {time.perf_counter() - began:.0f} seconds")

if __name__ == "__main__":
    main()
