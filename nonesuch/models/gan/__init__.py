"""Generative adversarial networks: a sampler trained against a critic; implicit.

    y = G(z, given),  z ~ N(0, I),        G against D: nothing but samples is ever compared with the data

A generator G turns noise into an image in one pass; a critic D, trained at the same time, says which of two images looks more
real. There is no p(x), only samples from it.

Or to turn a picture into another: y = G(x', z, given), where a pixel loss says what it is near to (pix2pix), or a way back must
find x' again (CycleGAN), and the critic that it must look real.

Can: sample in one pass (the fastest family here), be given labels, numbers and text, decode latents and walk between them, any
number of dimensions. Cannot: say how probable an image is (no bits/dim, and it says so), encode an image, work on categories;
be trained by watching its loss, which does not fall: look at samples, or at the classification accuracy score.

Costs: a round is two passes of the generator and three of the critic forward, two of each back, and at every k-th round a second
derivative, which is as much again. It needs augmentation on small data, or the critic learns the images by heart.

    r3gan.py         relativistic pairing, penalties on both sides, plain residual networks
    pix2pix.py       a picture from a picture: super-resolution, colour, any pairs; and the regression it is measured against
    cyclegan.py      one kind of picture from another, learned without pairs
    _adversarial.py  the law of the game: the loss and the penalties
    _networks.py     the two players
    _translation.py  the two players where a picture is made of a picture
    _augment.py      the random window both kinds of images are seen through
"""

DEFAULT = "r3gan"  # what the family's name alone means
