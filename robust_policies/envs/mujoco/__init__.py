"""Tasks from an MJCF model: observation, reward, end and start are data in task.yaml, the physics is MuJoCo's."""
