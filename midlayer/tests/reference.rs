// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random sequences of verbs against a reference model of what exists and what depends on what.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{CAP, Kind, LedgerHca, Stage, memory};
use proptest::prelude::*;
use proptest::test_runner::Config;
use rdma_midlayer::attr::AhAttr;
use rdma_midlayer::types::{Access, MwType, QpType};
use rdma_midlayer::{
    Ah, Context, ContextSpec, Cq, CqSpec, Error, MaySleep, Mr, Mw, Pd, Qp, QpSpec, Result, Srq,
    SrqSpec,
};

/// What to do; numbers choose among the objects of a kind, ended ones included.
#[derive(Clone, Copy, Debug)]
enum Step {
    Make(Kind, [usize; 3]),
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop::sample::select(vec![
        Kind::Context,
        Kind::Pd,
        Kind::Mr,
        Kind::Cq,
        Kind::Qp,
        Kind::Srq,
        Kind::Ah,
        Kind::Mw,
    ]);
    let number = 0..1000usize;
    let make = (kind, [number.clone(), number.clone(), number.clone()])
        .prop_map(|(kind, of)| Step::Make(kind, of));
    prop::collection::vec(prop_oneof![3 => make, 2 => number.prop_map(Step::End)], 1..60)
}

#[derive(Clone)]
enum Handle {
    Context(Arc<Context>),
    Pd(Arc<Pd>),
    Mr(Arc<Mr>),
    Cq(Arc<Cq>),
    Qp(Arc<Qp>),
    Srq(Arc<Srq>),
    Ah(Arc<Ah>),
    Mw(Arc<Mw>),
}

impl Handle {
    fn kind(&self) -> Kind {
        match self {
            Self::Context(_) => Kind::Context,
            Self::Pd(_) => Kind::Pd,
            Self::Mr(_) => Kind::Mr,
            Self::Cq(_) => Kind::Cq,
            Self::Qp(_) => Kind::Qp,
            Self::Srq(_) => Kind::Srq,
            Self::Ah(_) => Kind::Ah,
            Self::Mw(_) => Kind::Mw,
        }
    }

    fn end(&self, cx: &MaySleep) -> Result<()> {
        match self {
            Self::Context(o) => o.dealloc(cx),
            Self::Pd(o) => o.dealloc(cx),
            Self::Mr(o) => o.dereg(cx),
            Self::Cq(o) => o.destroy(cx),
            Self::Qp(o) => o.destroy(cx),
            Self::Srq(o) => o.destroy(cx),
            Self::Ah(o) => o.destroy(),
            Self::Mw(o) => o.dealloc(cx),
        }
    }
}

/// The reference: all objects ever made, what each depends on, which have ended.
#[derive(Default)]
struct Model {
    objects: Vec<(Handle, Vec<usize>, bool)>,
}

impl Model {
    fn pick(&self, kind: Kind, n: usize) -> Option<usize> {
        let of_kind: Vec<_> =
            (0..self.objects.len()).filter(|&i| self.objects[i].0.kind() == kind).collect();
        (!of_kind.is_empty()).then(|| of_kind[n % of_kind.len()])
    }

    fn alive(&self, i: usize) -> bool {
        !self.objects[i].2
    }

    fn busy(&self, i: usize) -> bool {
        self.objects.iter().any(|(_, uses, ended)| !ended && uses.contains(&i))
    }
}

fn make(
    cx: &MaySleep,
    stage: &Stage,
    model: &Model,
    kind: Kind,
    of: [usize; 3],
) -> Option<(Vec<usize>, Result<Handle>)> {
    let context = || {
        let i = model.pick(Kind::Context, of[0])?;
        let Handle::Context(context) = &model.objects[i].0 else { unreachable!() };
        Some((i, context.clone()))
    };
    let pd = || {
        let i = model.pick(Kind::Pd, of[0])?;
        let Handle::Pd(pd) = &model.objects[i].0 else { unreachable!() };
        Some((i, pd.clone()))
    };
    let cq = |n: usize| {
        let i = model.pick(Kind::Cq, n)?;
        let Handle::Cq(cq) = &model.objects[i].0 else { unreachable!() };
        Some((i, cq.clone()))
    };
    Some(match kind {
        Kind::Context => {
            let made = stage.device.alloc_context(cx, ContextSpec::default());
            (Vec::new(), made.map(Handle::Context))
        }
        Kind::Pd => {
            let (i, context) = context()?;
            (vec![i], context.alloc_pd(cx).map(Handle::Pd))
        }
        Kind::Cq => {
            let (i, context) = context()?;
            let spec = CqSpec { cqe: 4, ..CqSpec::default() };
            (vec![i], context.create_cq(cx, spec).map(Handle::Cq))
        }
        Kind::Mr => {
            let (i, pd) = pd()?;
            (vec![i], pd.reg_mr(cx, memory(0, 8), Access::NONE).map(Handle::Mr))
        }
        Kind::Srq => {
            let (i, pd) = pd()?;
            let spec = SrqSpec { max_wr: 4, max_sge: 1, ..SrqSpec::default() };
            (vec![i], pd.create_srq(cx, spec).map(Handle::Srq))
        }
        Kind::Ah => {
            let (i, pd) = pd()?;
            (vec![i], pd.create_ah(&AhAttr::default()).map(Handle::Ah))
        }
        Kind::Mw => {
            let (i, pd) = pd()?;
            (vec![i], pd.alloc_mw(cx, MwType::Type2).map(Handle::Mw))
        }
        Kind::Qp => {
            let (i, pd) = pd()?;
            let ((a, send_cq), (b, recv_cq)) = (cq(of[1])?, cq(of[2])?);
            let spec = QpSpec { recv_cq, ..QpSpec::new(QpType::Rc, &send_cq, CAP) };
            (vec![i, a, b], pd.create_qp(cx, spec).map(Handle::Qp))
        }
        Kind::Fmr | Kind::Xrcd => unreachable!("not among the steps"),
    })
}

proptest! {
    #![proptest_config(Config { cases: 200, failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_exists_and_what_a_verb_answers_are_as_in_the_reference(steps in steps()) {
        let cx = MaySleep::claim().unwrap();
        let hca = LedgerHca::new("hca");
        let stage = Stage::new(&cx, hca.clone());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Make(kind, of) => {
                    let Some((uses, made)) = make(&cx, &stage, &model, kind, of) else { continue };
                    let may = uses.iter().all(|&i| model.alive(i));
                    prop_assert_eq!(made.as_ref().err(), (!may).then_some(&Error::Gone));
                    if let Ok(handle) = made {
                        model.objects.push((handle, uses, false));
                    }
                }
                Step::End(n) if model.objects.is_empty() => { let _ = n; }
                Step::End(n) => {
                    let i = n % model.objects.len();
                    let answer = model.objects[i].0.end(&cx);
                    if !model.alive(i) {
                        prop_assert_eq!(answer, Err(Error::Gone));
                    } else if model.busy(i) {
                        prop_assert!(matches!(answer, Err(Error::Busy(_))), "{:?}", answer);
                    } else {
                        prop_assert_eq!(answer, Ok(()));
                        model.objects[i].2 = true;
                    }
                }
            }
            let mut live: BTreeMap<u8, i64> = BTreeMap::new();
            for (handle, _, _) in model.objects.iter().filter(|(_, _, ended)| !ended) {
                *live.entry(handle.kind() as u8).or_default() += 1;
            }
            prop_assert_eq!(hca.ledger.all_live(), live.values().sum::<i64>());
        }
        // The device leaves with what is left: all of it ends in the driver, and in the handles.
        let left = model.objects.iter().any(|(h, _, ended)| !ended && h.kind() != Kind::Ah);
        let told = stage.tear(&cx);
        prop_assert_eq!(told.is_empty(), !left, "{}", told);
        let ahs = model.objects.iter().filter(|(h, _, e)| !e && h.kind() == Kind::Ah).count();
        prop_assert_eq!(hca.ledger.all_live(), ahs as i64, "address handles end with their handles");
        for (handle, _, ended) in model.objects.iter().rev() {
            prop_assert_eq!(handle.end(&cx), if *ended { Err(Error::Gone) } else { Ok(()) });
        }
        hca.ledger.assert_kept();
    }
}
