"""Diffusion: data is spoiled by growing Gaussian noise, and a network learns to take it back.

    x_t = alpha_t x + sigma_t eps,        D(x_t; t) = E[x | x_t],        score = (alpha_t D - x_t) / sigma_t^2

The posterior mean D is all that is learnt, by plain regression; running the process backwards with it draws images, and its
squared error over all noise levels *is* the likelihood (a bound; or an estimate by the flow of the same marginals).

It can: sample well and with any number of steps, say a likelihood, be guided, restore (D composes with a known degradation).
It cannot: sample in one step, or give latents of fewer dimensions than the image.
It costs: one network evaluation a training image, 8 to 18 a sampled image, 33 a likelihood.

    ddpm.py          DDPM: noise in a thousand discrete steps, a network that predicts it; ancestral sampling and DDIM
    _ddpm_unet.py    the published U-Net
    _betas.py        its noise in closed form, and the terms of its bound
    _diffusers.py    a DDPM from a folder that diffusers wrote
    edm.py           EDM: noise levels, loss, sampling and likelihood; the presets
    _network.py      D between EDM's scalings, or the mean of votes for a pixel's few levels; U-Net, transformer or perceptron
    _schedule.py     noise levels, and how they are walked and drawn
    _samplers.py     Euler (DDIM), Heun with churn, DPM-Solver++(2M, 3M), UniPC, DDPM
    _likelihood.py   the variational bound and the probability flow's density
"""

DEFAULT = "edm"  # what the family's name alone means
