"""Part labels in other formats: COCO, Label Studio, FiftyOne, published part masks."""
