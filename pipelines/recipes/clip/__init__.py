"""How the pocket CLIP is made: captions from attribute words, contrastive training, evaluation, the shipped files."""
