//! Optimizers against figures of PyTorch 2's, printed with `repr`.

#![allow(clippy::unwrap_used)] // Helpers of tests are not tests to clippy.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW};
use weighbridge_candle::{AdamW, ParamsSgd, Sgd};

const WEIGHTS: [f64; 4] = [0.5, -1.25, 2.0, 0.0078125];
const GRADIENTS: [[f64; 4]; 3] = [[0.1, -0.2, 0.3, 1e-4], [0.05, 0.2, -0.3, 0.0], [-0.7, 0.01, 0.3, 5.0]];

fn variable(dtype: DType) -> Var {
    let weights = Tensor::new(&WEIGHTS, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    Var::from_tensor(&weights).unwrap()
}

/// A step whose gradients are these.
fn step(optimizer: &mut impl Optimizer, var: &Var, gradients: &[f64; 4]) -> Result<()> {
    let gradients = Tensor::new(gradients, &Device::Cpu)?.to_dtype(var.dtype())?;
    optimizer.backward_step(&(var.as_tensor() * gradients)?.sum_all()?)
}

/// The weights after the three steps.
fn trained<O: Optimizer>(dtype: DType, make: impl Fn(Vec<Var>) -> Result<O>) -> Vec<f64> {
    let var = variable(dtype);
    let mut optimizer = make(vec![var.clone()]).unwrap();
    for gradients in &GRADIENTS {
        step(&mut optimizer, &var, gradients).unwrap();
    }
    var.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Checks `F64`, `F32` and `BF16` against PyTorch's.
fn check<O: Optimizer>(make: impl Fn(Vec<Var>) -> Result<O>, torch: [[f64; 4]; 3]) {
    for ((dtype, apart), torch) in
        [(DType::F64, 1e-12), (DType::F32, 2e-7), (DType::BF16, 0.0)].into_iter().zip(torch)
    {
        let ours = trained(dtype, &make);
        for (ours, torch) in ours.iter().zip(torch) {
            assert!(
                (ours - torch).abs() <= apart * torch.abs().max(1.0),
                "{dtype:?}: {ours} instead of {torch}"
            );
        }
    }
}

#[test]
fn adamw_is_that_of_pytorch() {
    check(
        |vars| AdamW::new(vars, ParamsAdamW { lr: 0.01, weight_decay: 0.1, ..Default::default() }),
        [
            [0.4843818413043518, -1.2374320007627646, 1.98119384432142, -0.015271100825510218],
            [0.48438185453414917, -1.2374321222305298, 1.981194019317627, -0.015271099284291267],
            [0.486328125, -1.2421875, 1.9921875, -0.01531982421875],
        ],
    );
}

#[test]
fn adamw_with_amsgrad_is_that_of_pytorch() {
    let params = || ParamsAdamW { lr: 0.01, weight_decay: 0.1, beta1: 0.4, beta2: 0.7, ..Default::default() };
    check(
        |vars| Ok(AdamW::new(vars, params())?.amsgrad()),
        [
            [0.4890860409155597, -1.2426651118142136, 1.9834356220519795, -0.015397317786487976],
            [0.4890860319137573, -1.2426650524139404, 1.9834356307983398, -0.01539731863886118],
            [0.4921875, -1.25, 1.9921875, -0.01544189453125],
        ],
    );
}

#[test]
fn sgd_is_that_of_pytorch() {
    let params = ParamsSgd { lr: 0.01, momentum: 0.9, weight_decay: 0.1, ..Default::default() };
    check(
        |vars| Sgd::new(vars, params.clone()),
        [
            [0.5005416985000001, -1.24147909675, 1.983367995, -0.042233996833812494],
            [0.5005416870117188, -1.2414790391921997, 1.9833680391311646, -0.04223399609327316],
            [0.5, -1.25, 1.984375, -0.042236328125],
        ],
    );
    let nesterov = ParamsSgd { nesterov: true, ..params };
    check(
        |vars| Sgd::new(vars, nesterov.clone()),
        [
            [0.5045005467114999, -1.23870148870825, 1.9760628457049998, -0.08725370291869493],
            [0.5045005679130554, -1.2387014627456665, 1.9760627746582031, -0.08725369721651077],
            [0.50390625, -1.234375, 1.9765625, -0.08740234375],
        ],
    );
    check(
        |vars| Sgd::new(vars, ParamsSgd { lr: 0.01, momentum: 0.9, dampening: 0.1, ..Default::default() }),
        [
            [0.5027349999999999, -1.24809, 1.9943000000000002, -0.03719021],
            [0.5027350187301636, -1.2480900287628174, 1.9943000078201294, -0.037190210074186325],
            [0.5, -1.25, 2.0, -0.037109375],
        ],
    );
    check(
        |vars| Sgd::new(vars, ParamsSgd { lr: 0.01, ..Default::default() }),
        [
            [0.5055, -1.2501, 1.997, -0.042188500000000004],
            [0.5055000185966492, -1.250100016593933, 1.996999979019165, -0.04218849912285805],
            [0.50390625, -1.25, 2.0, -0.042236328125],
        ],
    );
}

#[test]
fn what_gets_no_gradient_stays() {
    let (trained, frozen) = (variable(DType::F32), variable(DType::F32));
    let ids = Var::from_tensor(&Tensor::new(&[1_u32, 2], &Device::Cpu).unwrap()).unwrap();
    let mut optimizer =
        AdamW::new(vec![frozen.clone(), ids, trained.clone()], ParamsAdamW::default()).unwrap();
    step(&mut optimizer, &trained, &GRADIENTS[0]).unwrap();
    assert_eq!(frozen.to_vec1::<f32>().unwrap(), WEIGHTS.map(|weight| weight as f32));
    assert_ne!(trained.to_vec1::<f32>().unwrap(), WEIGHTS.map(|weight| weight as f32));
}

#[test]
fn a_gradient_that_is_a_view_is_taken_as_it_is_seen() {
    let square = |values: [f32; 4]| Tensor::from_slice(&values, (2, 2), &Device::Cpu).unwrap();
    let (one, other) = (square([1.0, 2.0, 3.0, 4.0]), square([0.1, 0.2, 0.3, 0.4]));
    let var = Var::from_tensor(&one).unwrap();
    let mut optimizer = Sgd::new(vec![var.clone()], ParamsSgd { lr: 1.0, ..Default::default() }).unwrap();
    optimizer.backward_step(&(var.t().unwrap() * &other).unwrap().sum_all().unwrap()).unwrap();
    let expected = (one - other.t().unwrap()).unwrap();
    assert_eq!(var.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
}

#[test]
fn a_gradient_that_does_not_fit_changes_nothing() {
    fn refuses(optimizer: &mut impl Optimizer, vars: &[Var; 2]) {
        let loss = vars.iter().map(|var| var.sqr().unwrap().sum_all().unwrap());
        let loss = loss.reduce(|one, other| (one + other).unwrap()).unwrap();
        let before = vars.each_ref().map(|var| var.to_vec1::<f32>().unwrap());
        for wrong in [(3, DType::F32), (4, DType::F64)] {
            let mut gradients = loss.backward().unwrap();
            gradients.insert(&vars[1], Tensor::ones(wrong.0, wrong.1, &Device::Cpu).unwrap());
            let error = optimizer.step(&gradients).unwrap_err().to_string();
            assert!(error.contains("has a gradient of shape"), "{error}");
            assert_eq!(vars.each_ref().map(|var| var.to_vec1::<f32>().unwrap()), before);
        }
    }
    let vars = [variable(DType::F32), variable(DType::F32)];
    refuses(&mut AdamW::new(vars.to_vec(), ParamsAdamW::default()).unwrap(), &vars);
    refuses(&mut Sgd::new(vars.to_vec(), ParamsSgd::default()).unwrap(), &vars);
    refuses(&mut Sgd::new(vars.to_vec(), ParamsSgd { momentum: 0.9, ..Default::default() }).unwrap(), &vars);
}

#[test]
fn a_variable_that_is_given_twice_is_stepped_once() {
    let once = trained(DType::F32, |vars| Sgd::new(vars, ParamsSgd { lr: 0.1, ..Default::default() }));
    let twice = trained(DType::F32, |vars| {
        Sgd::new([vars.clone(), vars].concat(), ParamsSgd { lr: 0.1, ..Default::default() })
    });
    assert_eq!(once, twice);
    let adamw = |vars| AdamW::new(vars, ParamsAdamW::default());
    assert_eq!(trained(DType::F32, adamw), trained(DType::F32, |vars| adamw([vars.clone(), vars].concat())));
}
