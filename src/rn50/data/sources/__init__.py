"""The forms in which labelled images are distributed, each read as a stream of ``SourceImage``."""
