"""One file a command: a dataclass of its flags, and the function that takes it.

At the top of these files nothing heavy is imported: `rism --help` reads all of them.
"""
