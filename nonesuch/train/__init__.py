"""Learning: one loop that knows objectives only, a clock that counts images, and a state that resumes bit for bit."""
