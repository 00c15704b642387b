"""The page on which people look at labels and correct them."""
