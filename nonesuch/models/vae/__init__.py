"""Variational autoencoders: log p(x) >= E_q log p(x | z) - KL(q(z | x) || p(z)), an explicit model with a bound.

A picture is drawn in two strokes: latents z from a prior that is easy to draw from, then the picture from p(x | z), in which the
pixels are independent. The integral over z has no closed form, so a second network q(z | x) guesses which z made a picture, and
both learn from the bound its guess gives.

    can      sample in one pass of the network; encode, decode and interpolate; bound its own likelihood, tighter with more draws
    cannot   say its likelihood exactly; complete a picture; be steered by guidance
    costs    training: one pass of encoder and decoder an image. sampling: one pass. a bound of k draws: one encoder, k decoders

    vdvae.py     a hierarchy of stochastic layers at growing resolutions, all trained at once
    _ladder.py   its networks: upward pass, stochastic layers
    vqvae.py     one map of codes, each a number below K, and a prior learned over them
    _codebook.py _resnet.py _prior.py   its codes, its networks, its prior
    _patches.py  convolutions that halve and double, by matrix products where those are quicker
    _pixels.py   p(x | z) on a grid of levels: categorical, or a mixture of discretized logistics
    _normal.py   the same by a normal distribution of one deviation
"""

DEFAULT = "vdvae"  # what the family's name alone means
