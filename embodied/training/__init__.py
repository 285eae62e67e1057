"""Training, on one page: `embodied.training.loop`.

collector   worlds and an actor to rollouts, every frame encoded once
perception  frames to what the reward and the policy read
labeller    rollouts to rewards
evaluation  how good a policy is
checkpoints everything that going on needs
"""
