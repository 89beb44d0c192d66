"""A fit in which one client of several is hostile."""

from _altering import altering

MANY = 100_000


def fit(toy, strategy, alter=None, app=None, num_clients=4, **options):
    trainer = toy.make_trainer(strategy, **options)
    faults = None if alter is None else altering(toy, alter)
    return trainer.fit(toy.Net(), toy.make_grid(num_clients, app, faults=faults))
