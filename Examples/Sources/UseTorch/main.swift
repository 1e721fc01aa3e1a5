import Torch

let a = Tensor.arange(0..<6, dtype: .float32).reshaped(2, 3)
let b = Tensor.arange(0..<12, dtype: .float32).reshaped(3, 4)
print(matmul(a, b))
