"""Flows: p(x) = p(f(x)) |det df/dx|, explicit and exact.

An invertible network f carries images to normal noise z, and the change of variables gives their density. They can say how
probable an image is (exactly for continuous images; by a bound, through dequantization, for images on a grid), encode an
image into latents as many as its values and decode them without loss, and sample in one pass. They cannot compress (z is as
large as x), nor be guided; a coupling moves half of the values only, so they need many, and their samples are less crisp
than a diffusion model's.
Training, scoring and sampling each cost one pass of the networks; the inverse is analytic.

    nsf.py          neural spline flow: multi-scale couplings by rational-quadratic splines, variational dequantization
    glow.py         Glow: ActNorm, invertible 1x1 convolutions in LU form, affine couplings, learned priors at each scale
    _coupling.py    squeeze, ActNorm, couplings and the multi-scale flow
    _affine.py      Glow's steps and multi-scale flow
    _products.py    the network of Glow's couplings, as matrix products
    _spline.py      the rational-quadratic spline
    _marginal.py    each pixel's own distribution function, the first bijection
    _dequantize.py  the learned density inside a cell of the grid, and the bound
    _pixels.py      pictures on a grid as points of the line, and back
    _public.py      weights of a public Glow as ours
"""

DEFAULT = "nsf"  # what the family's name alone means
