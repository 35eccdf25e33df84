"""Results as the files of annotation tools and training sets."""
