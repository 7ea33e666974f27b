"""Blocks that two families share, generic over 1, 2 and 3 spatial dimensions and any number of channels.

Weights are float32; a layer computes in the dtype of what it is given, so a network's precision is chosen where its input is
cast (`x.to(model.compute_dtype)`) and nowhere else. No layer depends on train or eval mode, and none has random numbers of its
own: dropout takes keys.
"""
