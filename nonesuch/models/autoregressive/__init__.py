"""Autoregressive models: p(x) = prod_i p(x_i | x_1, ..., x_{i-1}), explicit and exact.

Any distribution factors so, by the chain rule; what is modelled is one conditional distribution over a few levels at a time, and
each is normalised, so the likelihood is exact: no bound, no estimate, no partition function.

    can         score exactly; draw; complete what follows a known beginning exactly, and other holes approximately; be guided;
                serve as the prior of tokens of any kind (a line, a picture, a volume)
    cannot      encode, interpolate, or draw all pixels at once: a picture costs as many passes as it has pixels
    costs       training: one pass for all pixels together; drawing: one position at a time with cached keys and values, or
                activations, so the work of about one pass, but in as many small pieces as there are pixels

    gated_pixelcnn        two gated stacks of convolutions, a vertical and a horizontal one; pictures and lines
    image_transformer     causal attention over pixels or tokens
    pixelcnnpp            shifted convolutions in two streams, a U with skips; pictures and lines
    _chain                what all of them do alike: learn and score in one pass, draw and complete in order
    _pixelwise            what the convolutional ones do alike: features of pixels, walked, and a head upon them
    _raster               the order of reading: tokens, and their causal neighbours
    _stacks               the two stacks of gated_pixelcnn, over a picture or pixel by pixel
    _shifted, _streams    the convolutions and the two streams of pixelcnnpp, the same
    _heads                a distribution over levels: categorical, or a discretized mixture of logistics
    _public               weights of public PixelCNNs as ours
"""

DEFAULT = "image_transformer"  # what the family's name alone means
