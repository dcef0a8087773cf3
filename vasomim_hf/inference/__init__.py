"""From a model and normalised frames to probabilities, boxes and classes at the size that is asked for.

`sliding_window` looks at frames piece by piece, `views` has the changed frames of test-time augmentation, and `prediction`
joins both with the models.
"""
