"""Image, pose and shape metrics, each equal to the field's reference; results are dataclasses of plain numbers.

``json.dumps(dataclasses.asdict(result))`` works for every result: no tensors, no NaN, no infinity.
"""
