"""Policies that read cameras, a sentence and the robot's own readings, and answer with a chunk of actions.

    policy = ChunkPolicy(spec, normal)                       # policies.vla.core
    learner = Imitation(policy, steps=3000, seed=0)          # policies.vla.imitation
    actor = ChunkActor(policy, see, say, execute=4)          # policies.vla.actor
    actions, memory = actor.act(obs, memory, first, explore=False)

Spatial maps of any frozen encoder come in from outside, so nothing here knows one.
"""
