"""The two stages and their scores: encoding images, decoding features, scoring captions."""
