import numpy as np
from vrtspike_jax.data.pipeline import train_iterator, eval_clips

def test_smoke(plain_set):
    it = train_iterator(plain_set.config(batch_size=2), seed=1)
    for _ in range(5):
        b = next(it)
        print({k:(v.shape,v.dtype) for k,v in b.items()}, b['index'])
    st = it.get_state(); n=[next(it) for _ in range(3)]
    it.set_state(st); m=[next(it) for _ in range(3)]
    for a,b in zip(n,m):
        for k in a: np.testing.assert_array_equal(a[k],b[k])
    it.close()
    for name, c in eval_clips(plain_set.config()): print(name, {k:getattr(v,'shape',v) for k,v in c.items()})
