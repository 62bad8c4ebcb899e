"""Floor 2: problems and how they are graded; corpora made of them."""
