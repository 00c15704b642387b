"""One image to part boxes, without any server: questions, answers, coordinates, checks, retries."""
