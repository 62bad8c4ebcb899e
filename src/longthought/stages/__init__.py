"""Floor 4: the boxes of the pipeline. Artifact in, artifact out."""
