"""The page on which a person reviews a table of captions, served to this machine only."""
