"""x"""

from longthought.cli import main
