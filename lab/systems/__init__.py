"""Papers that are no method of training but systems of several models, each with a study of its own: agents, imitation, unlearning."""
