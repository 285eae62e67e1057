"""Observations in, actions out: learners that take their rewards as numbers, useful without the rest.

    from policies.rlpd import rlpd

    learner = rlpd(observation_space, action_space, num_worlds=8, total_steps=30_000, seed=0, device="cpu")
    memory = learner.begin(8)
    actions, memory = learner.act(obs, memory, first, explore=True)
    learner.observe(rollout, rewards)
    metrics = learner.update(batches, count)

`policies.core` says what the commands ask of a learner.
"""
