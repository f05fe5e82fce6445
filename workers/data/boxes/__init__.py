"""Images with boxes around things, as COCO lays them out; only recipes come in."""
