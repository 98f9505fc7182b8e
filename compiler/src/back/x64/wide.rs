//! Two registers of the loop IR in one of the machine: the encodings of AVX-512.
//!
//! The back end names operations by their AVX2 encodings. [`encoding`] gives the AVX-512 encoding of the same
//! operation, for eight or for sixteen lanes. Every lane has the same bits in all three: a register of
//! sixteen lanes only ever holds two registers of the loop IR which lie next to each other in a tile, and what adds
//! up lanes in a given order takes its halves one after the other.

use super::asm::Width;
use crate::loops::{Effect, Extent, Nest};
use iced_x86::Code;

/// What code may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// AVX2 and FMA: 16 registers of eight lanes.
    Avx2,
    /// AVX-512 as well: 32 registers of sixteen lanes.
    Avx512,
}

impl Vectors {
    /// The most that this machine has.
    pub fn here() -> Vectors {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
        {
            return Vectors::Avx512;
        }
        Vectors::Avx2
    }
}

/// Whether a nest gains from registers of sixteen lanes. Where all that it does is to add up lanes, the halves
/// of a register would have to wait for each other.
pub(super) fn gains(nest: &Nest) -> bool {
    let is_apart = |e: &Effect| matches!(e, Effect::Store(..) | Effect::Add(..) | Effect::SumPre(..));
    matches!(nest.extent, Extent::Matrix { .. }) && nest.effects.iter().any(is_apart)
}

/// The AVX-512 encoding of an operation.
pub(super) fn encoding(code: Code, width: Width) -> Code {
    let (eight, sixteen) = both(code);
    match width {
        Width::Eight => eight,
        Width::Sixteen => sixteen,
    }
}

fn both(code: Code) -> (Code, Code) {
    use Code::*;
    match code {
        VEX_Vaddps_ymm_ymm_ymmm256 => {
            (EVEX_Vaddps_ymm_k1z_ymm_ymmm256b32, EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vsubps_ymm_ymm_ymmm256 => {
            (EVEX_Vsubps_ymm_k1z_ymm_ymmm256b32, EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vmulps_ymm_ymm_ymmm256 => {
            (EVEX_Vmulps_ymm_k1z_ymm_ymmm256b32, EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vdivps_ymm_ymm_ymmm256 => {
            (EVEX_Vdivps_ymm_k1z_ymm_ymmm256b32, EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vminps_ymm_ymm_ymmm256 => {
            (EVEX_Vminps_ymm_k1z_ymm_ymmm256b32, EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae)
        }
        VEX_Vmaxps_ymm_ymm_ymmm256 => {
            (EVEX_Vmaxps_ymm_k1z_ymm_ymmm256b32, EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae)
        }
        VEX_Vandps_ymm_ymm_ymmm256 => {
            (EVEX_Vpandd_ymm_k1z_ymm_ymmm256b32, EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32)
        }
        VEX_Vorps_ymm_ymm_ymmm256 => (EVEX_Vpord_ymm_k1z_ymm_ymmm256b32, EVEX_Vpord_zmm_k1z_zmm_zmmm512b32),
        VEX_Vxorps_ymm_ymm_ymmm256 => {
            (EVEX_Vpxord_ymm_k1z_ymm_ymmm256b32, EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32)
        }
        VEX_Vpaddd_ymm_ymm_ymmm256 => {
            (EVEX_Vpaddd_ymm_k1z_ymm_ymmm256b32, EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32)
        }
        VEX_Vpsubd_ymm_ymm_ymmm256 => {
            (EVEX_Vpsubd_ymm_k1z_ymm_ymmm256b32, EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32)
        }
        VEX_Vfmadd132ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfmadd132ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfmadd132ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vfmadd213ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfmadd213ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vfmadd231ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfmadd231ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vfnmadd132ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfnmadd132ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfnmadd132ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vfnmadd213ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfnmadd213ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfnmadd213ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vfnmadd231ps_ymm_ymm_ymmm256 => {
            (EVEX_Vfnmadd231ps_ymm_k1z_ymm_ymmm256b32, EVEX_Vfnmadd231ps_zmm_k1z_zmm_zmmm512b32_er)
        }
        VEX_Vcmpps_ymm_ymm_ymmm256_imm8 => {
            (EVEX_Vcmpps_kr_k1_ymm_ymmm256b32_imm8, EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae)
        }
        VEX_Vsqrtps_ymm_ymmm256 => (EVEX_Vsqrtps_ymm_k1z_ymmm256b32, EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er),
        VEX_Vroundps_ymm_ymmm256_imm8 => {
            (EVEX_Vrndscaleps_ymm_k1z_ymmm256b32_imm8, EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae)
        }
        VEX_Vcvttps2dq_ymm_ymmm256 => {
            (EVEX_Vcvttps2dq_ymm_k1z_ymmm256b32, EVEX_Vcvttps2dq_zmm_k1z_zmmm512b32_sae)
        }
        VEX_Vcvtdq2ps_ymm_ymmm256 => {
            (EVEX_Vcvtdq2ps_ymm_k1z_ymmm256b32, EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er)
        }
        VEX_Vpslld_ymm_ymm_imm8 => (EVEX_Vpslld_ymm_k1z_ymmm256b32_imm8, EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8),
        VEX_Vpsrld_ymm_ymm_imm8 => (EVEX_Vpsrld_ymm_k1z_ymmm256b32_imm8, EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8),
        VEX_Vmovups_ymm_ymmm256 => (EVEX_Vmovups_ymm_k1z_ymmm256, EVEX_Vmovups_zmm_k1z_zmmm512),
        VEX_Vmovups_ymmm256_ymm => (EVEX_Vmovups_ymmm256_k1z_ymm, EVEX_Vmovups_zmmm512_k1z_zmm),
        VEX_Vmovaps_ymm_ymmm256 => (EVEX_Vmovaps_ymm_k1z_ymmm256, EVEX_Vmovaps_zmm_k1z_zmmm512),
        VEX_Vbroadcastss_ymm_m32 => (EVEX_Vbroadcastss_ymm_k1z_xmmm32, EVEX_Vbroadcastss_zmm_k1z_xmmm32),
        other => unreachable!("{other:?} is not used with 32 registers"),
    }
}
