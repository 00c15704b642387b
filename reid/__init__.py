"""The training half: masked attention, prompts, two stages, honest evaluation. Imports only `shared`."""
