#include "emulate.hpp"

#include "postprocess.cu"

RISM_EXPORT(propagate)
RISM_EXPORT(attention_maps)
RISM_EXPORT(sums_by_region)
RISM_EXPORT(class_means)
RISM_EXPORT(scores_and_sums)
RISM_EXPORT(separabilities)
RISM_EXPORT(mask_pixels)
