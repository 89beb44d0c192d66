"""Faults that alter the train replies of one client."""

BAD = "02"


def altering(toy, alter, who=BAD):
    def faults(instruction, reply):
        return alter(toy, reply) if toy.is_train(instruction) and toy.client_of(reply) == who else reply

    return faults
