"""What single methods promise: the paper's formulas, corners, who hears whom."""
