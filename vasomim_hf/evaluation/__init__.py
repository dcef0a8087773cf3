"""What every reported number means, how sure it is, and how two results are compared.

`metrics` has the measures of masks, `segmentation_scores`, `detection_metrics` and `classification_metrics` gather them
over a data set, `calibration` asks whether probabilities can be believed, `statistics` gives intervals and p-values,
`results` is the file that all of it is written to, and `comparison` holds two such files against each other.
"""
