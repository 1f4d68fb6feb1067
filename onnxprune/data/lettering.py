"""Lines of writing as strokes: random words in the letters that A. V. Hershey drew at the U.S. Naval Weapons Laboratory
(1967, "Calligraphy for computers"; here Simplex Roman). Knows arrays only.

A network that reads answers anything but writing with nothing at all, whatever its inputs are.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The letters from ! to ~, with a comma between them and a space between the strokes of one. A point is two characters:
# x to the right and y downwards, as the distance from R in ASCII; capitals stand from y = -12 to 9.
LETTERS = r"""
RFRT RYQZR[SZRY,NFNM VFVM,SBLb YBRb LOZO KUYU,PBP_ TBT_ YIWGTFPFMGKIKKLMMNOOUQWRXSYUYXWZT[P[MZKX,
[FI[ NFPHPJOLMMKMIKIIJGLFNFPGSHVHYG[F WTUUTWTYV[X[ZZ[X[VYTWT,
\O\N[MZMYNXPVUTXRZP[L[JZIYHWHUISJRQNRMSKSIRGPFNGMIMKNNPQUXWZY[[[\Z\Y,RHQGRFSGSIRKQL,VBTDRGPKOPOTPYR]T`Vb,
NBPDRGTKUPUTTYR]P`Nb,RFRR MIWO WIMO,RIR[ IR[R,SZR[QZRYSZS\R^Q_,IR[R,RYQZR[SZRY,[BIb,
QFNGLJKOKRLWNZQ[S[VZXWYRYOXJVGSFQF,NJPISFS[,LKLJMHNGPFTFVGWHXJXLWNUQK[Y[,MFXFRNUNWOXPYSYUXXVZS[P[MZLYKW,UFKTZT UFU[,
WFMFLOMNPMSMVNXPYSYUXXVZS[P[MZLYKW,XIWGTFRFOGMJLOLTMXOZR[S[VZXXYUYTXQVOSNRNOOMQLT,YFO[ KFYF,
PFMGLILKMMONSOVPXRYTYWXYWZT[P[MZLYKWKTLRNPQOUNWMXKXIWGTFPF,XMWPURRSQSNRLPKMKLLINGQFRFUGWIXMXRWWUZR[P[MZLX,
RMQNROSNRM RYQZR[SZRY,RMQNROSNRM SZR[QZRYSZS\R^Q_,ZIJRZ[,IO[O IU[U,JIZRJ[,LKLJMHNGPFTFVGWHXJXLWNVORQRT RYQZR[SZRY,
WNVLTKQKOLNMMPMSNUPVSVUUVS QKOMNPNSOUPV WKVSVUXVZV\T]Q]O\L[JYHWGTFQFNGLHJJILHOHRIUJWLYNZQ[T[WZYYZX XKWSWUXV,
RFJ[ RFZ[ MTWT,KFK[ KFTFWGXHYJYLXNWOTP KPTPWQXRYTYWXYWZT[K[,ZKYIWGUFQFOGMILKKNKSLVMXOZQ[U[WZYXZV,
KFK[ KFRFUGWIXKYNYSXVWXUZR[K[,LFL[ LFYF LPTP L[Y[,LFL[ LFYF LPTP,ZKYIWGUFQFOGMILKKNKSLVMXOZQ[U[WZYXZVZS USZS,
KFK[ YFY[ KPYP,RFR[,VFVVUYTZR[P[NZMYLVLT,KFK[ YFKT POY[,LFL[ L[X[,JFJ[ JFR[ ZFR[ ZFZ[,KFK[ KFY[ YFY[,
PFNGLIKKJNJSKVLXNZP[T[VZXXYVZSZNYKXIVGTFPF,KFK[ KFTFWGXHYJYMXOWPTQKQ,
PFNGLIKKJNJSKVLXNZP[T[VZXXYVZSZNYKXIVGTFPF SWY],KFK[ KFTFWGXHYJYLXNWOTPKP RPY[,
YIWGTFPFMGKIKKLMMNOOUQWRXSYUYXWZT[P[MZKX,RFR[ KFYF,KFKULXNZQ[S[VZXXYUYF,JFR[ ZFR[,HFM[ RFM[ RFW[ \FW[,KFY[ YFK[,
JFRPR[ ZFRP,YFK[ KFYF K[Y[,OBOb PBPb OBVB ObVb,KFY^,TBTb UBUb NBUB NbUb,PLRITL MORJWO RJR[,J]Z],SFRGQIQKRLSKRJ,
XMX[ XPVNTMQMONMPLSLUMXOZQ[T[VZXX,LFL[ LPNNPMSMUNWPXSXUWXUZS[P[NZLX,XPVNTMQMONMPLSLUMXOZQ[T[VZXX,
XFX[ XPVNTMQMONMPLSLUMXOZQ[T[VZXX,LSXSXQWOVNTMQMONMPLSLUMXOZQ[T[VZXX,WFUFSGRJR[ OMVM,
XMX]W`VaTbQbOa XPVNTMQMONMPLSLUMXOZQ[T[VZXX,MFM[ MQPNRMUMWNXQX[,QFRGSFREQF RMR[,RFSGTFSERF SMS^RaPbNb,
MFM[ WMMW QSX[,RFR[,GMG[ GQJNLMOMQNRQR[ RQUNWMZM\N]Q][,MMM[ MQPNRMUMWNXQX[,QMONMPLSLUMXOZQ[T[VZXXYUYSXPVNTMQM,
LMLb LPNNPMSMUNWPXSXUWXUZS[P[NZLX,XMXb XPVNTMQMONMPLSLUMXOZQ[T[VZXX,OMO[ OSPPRNTMWM,
XPWNTMQMNNMPNRPSUTWUXWXXWZT[Q[NZMX,RFRWSZU[W[ OMVM,MMMWNZP[S[UZXW XMX[,LMR[ XMR[,JMN[ RMN[ RMV[ ZMV[,MMX[ XMM[,
LMR[ XMR[P_NaLbKb,XMM[ MMXM M[X[,TBRCQDPFPHQJRKSMSOQQ RCQEQGRISJTLTNSPORSTTVTXSZR[Q]Q_Ra QSSUSWRYQZP\P^Q`RaTb,RBRb,
PBRCSDTFTHSJRKQMQOSQ RCSESGRIQJPLPNQPURQTPVPXQZR[S]S_Ra SSQUQWRYSZT\T^S`RaPb,
IUISJPLONOPPTSVTXTZS[Q ISJQLPNPPQTTVUXUZT[Q[O
""".replace("\n", "")
TOP, FOOT = -12, 9
WORD = (1, 10)
SPACE = 10
"""Between words, in the units of the letters."""
OFTEN = {"lower": 0.45, "upper": 0.2, "digit": 0.2, "any": 0.15}
"""What words are made of."""
ALPHABETS = {"lower": range(64, 90), "upper": range(32, 58), "digit": range(15, 25), "any": range(94)}


def _decoded(letter: str) -> list[Array]:
    strokes = letter.split(" ")
    return [np.array([ord(c) - ord("R") for c in s], np.float64).reshape(-1, 2) for s in strokes]


GLYPHS = [_decoded(letter) for letter in LETTERS.split(",")]


def segments(rng: np.random.Generator, height: float, width: float) -> tuple[Array, float]:
    """A line of words that fills the box as it can, as straight pieces: their ends (pieces, 2, 2) as (y, x), and the
    thickness of the pen, all in pixels."""
    size = rng.uniform(0.3, 0.75) * height / (FOOT - TOP)
    wide, slant, gap = size * rng.uniform(0.75, 1.2), rng.uniform(-0.1, 0.35), rng.uniform(2, 7)
    base = height / 2 + rng.uniform(-0.08, 0.08) * height - size * (TOP + FOOT) / 2
    turn = rng.normal(0, 0.01)
    at = rng.uniform(0.1, 0.6) * height
    end = width * rng.uniform(0.5, 1.0)
    found: list[Array] = []
    while at < end:
        kind = str(rng.choice(list(OFTEN), p=list(OFTEN.values())))
        for letter in rng.choice(ALPHABETS[kind], int(rng.integers(*WORD, endpoint=True))):
            strokes = GLYPHS[letter]
            left, right = (float(f([f(s[:, 0]) for s in strokes])) for f in (np.min, np.max))
            if at + wide * (right - left) > width:
                at = end
                break
            for stroke in strokes:
                x = at + wide * (stroke[:, 0] - left) - slant * size * (stroke[:, 1] - FOOT)
                y = base + size * stroke[:, 1] + turn * (x - width / 2)
                points = np.stack([y, x], 1)
                found += [np.stack(pair) for pair in pairwise(points)]
            at += wide * (right - left + gap)
        at += wide * SPACE
    pen = size * math.exp(rng.uniform(math.log(1.5), math.log(4)))
    return np.array(found).reshape(-1, 2, 2), max(pen, 1.0)
