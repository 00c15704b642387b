"""A trained run scored on its targets; everything a report needs is computed and written here, once."""
