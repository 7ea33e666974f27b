"""Diffusion: data is spoiled by growing Gaussian noise, and a network learns to take it back.

    x_t = alpha_t x + sigma_t eps,        D(x_t; t) = E[x | x_t],        score = (alpha_t D - x_t) / sigma_t^2

The posterior mean D is all that is learnt, by plain regression; running the process backwards with it draws images, and its
squared error over all noise levels *is* the likelihood (a bound; or an estimate by the flow of the same marginals).

It can: sample well and with any number of steps, say a likelihood, be guided, restore (D composes with a known degradation).
It cannot: sample in one step, or give latents of fewer dimensions than the image.
It costs: one network evaluation a training image; 20 to 40 a sampled image; 32 a likelihood.

    edm.py           EDM: preconditioning, noise levels and samplers of Karras et al.; categorical pixels where levels are few
    _schedule.py     noise levels, and how they are walked and drawn
    _samplers.py     Euler (DDIM), Heun with churn, DPM-Solver++(2M)
    _likelihood.py   the variational bound and the probability flow's density
"""
