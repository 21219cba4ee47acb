"""The best documented runs of others, with their settings and what differs here.

Three things differ from all of them: the classifier begins at N(0, 0.01) instead of a uniform
distribution; the rate changes at every step where a source changes it once an epoch; and mixing
takes pairs of images for partners. Their expected effect is below the spread of seeds (0.1 points).
"""
