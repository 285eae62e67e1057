"""Observations in, actions out: learners that take their rewards as numbers, useful without the rest.

    from policies.sb3 import sac

    model = sac(venv, seed=0)  # stable-baselines3's SAC, with as many updates as many worlds deserve
    model.learn(30_000, callback=labeller)
    actions, _ = model.predict(obs, deterministic=True)

`policies.core` says what the commands ask of a learner.
"""
