"""Scenario packs: folders of images, questions, expected answers and the rules by which answers are scored."""
