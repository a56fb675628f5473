"""One HTML page about an evaluation or a deblur run, with everything inside it."""
