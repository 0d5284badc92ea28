"""What re-ranks captions, made from the training images and their captions."""
