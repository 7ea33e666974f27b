"""Energies: p(x | given) = exp(-E(x | given)) / Z, explicit and unnormalised.

Any function of an image is a density once it is exponentiated and normalised, and E may be any network with one output.
The price is Z, which nobody knows. The gradient of log p in x does without it, and Langevin dynamics follows it with noise,

    x <- x - (eps^2 / 2) grad E(x) + eps z,    z ~ N(0, I),

to samples of p. Learning lowers E on data and raises it where the model's own chains go.

Can: sample; rank images (`energy`), hence detect the odd one out; add energies (products of experts).
Cannot: say a likelihood, so it has no bits per dimension; encode; sample in a few evaluations.
Costs: a network evaluation and its backward pass for each of some 32 to 64 steps of sampling; to train, a second derivative and a
short chain.

    recovery.py    energies over noise levels, trained by recovery likelihood and score matching
    _langevin.py   the dynamics
    _network.py    the scalar network
"""

DEFAULT = "recovery"  # what the family's name alone means
