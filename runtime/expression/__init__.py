"""The head noun and the words of place and size of English expressions, by word lists."""
