"""`environment`: what this machine has; `selftest`: whether its engines compute the right thing."""
