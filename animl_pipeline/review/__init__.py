"""A plan's model on images that are not reviewed: predictions for a folder, and which images to review next."""
