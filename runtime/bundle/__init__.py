"""Bundles: the manifest and its parts, checked as hostile input; fetching and updating them."""
