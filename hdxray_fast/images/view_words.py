"""Words for views and body parts, as hospitals write them: closed lists in many languages, damaged letters forgiven.

    text ──view_in_words──▶ "frontal", "lateral", "other" or "" (it does not say)
    text ──part_in_words──▶ ("chest" | "other" | "unknown" | "", the word of the lists that was found)

What comes back is a word of these lists, never the text itself, which may hold anything.
"""

from __future__ import annotations

import re
import unicodedata

# A small letter is one with an accent in some spellings, that a wrong character set may have turned into up to four
# other signs (T?RAX) or dropped. Ends are open, so that THORAX finds THORAXRAUM; short words are on their own.
CHEST = (
    "CHEST", "CHST", "THORAX", "THORACI", "THORACOABDO", "THX", "CXR", "ToRAX", "TORAKS", "TORACE", "ToRACI",
    "THORAKAL", "PECHO", "PEITO", "POITRINE", "PETTO", "BRUSTKORB", "BRUSTWIRBEL", "BORSTKAS", "BRoSTKORG",
    "BRYSTKASSE", "RINTAKEH", "MELLKAS", "HRUDNiK", "KLATKA PIERS", "KLATKI PIERS", "KLP", "GRUDN", "GoGuS", "LUNG",
    "PULMON", "PULMaO", "POUMON", "POLMON", "PLuCA", "RIB", "RIPPE", "COSTILLA", "COSTAL", "COTES", "STERNUM",
    "ESTERNON", "STERNO", "CLAVIC", "SCHLuSSELBEIN", "HEART", "HERZ", "CORAZON", "CORAcaO", "CARDIAC", "COEUR",
    "CUORE", "TSPINE", "T SPINE", "DORSAL SPINE", "BWS", "TORACO",
    "胸", "肺", "흉부", "가슴", "ГРУД", "ОГК", "ЛЕГКИ", "ΘΩΡΑΚ", "ΘΏΡΑΚ", "חזה", "صدر", "ทรวงอก",
)  # fmt: skip
# Other parts; short words must stand alone, longer ones may go on (HANDS, KNEES, ABDOMINAL).
OTHER = (
    "HAND", "WRIST", "FINGER", "THUMB", "FOREARM", "ELBOW", "HUMERUS", "UPPER ARM", "SHOULDER", "SCAPULA", "FOOT",
    "FEET", "TOE", "ANKLE", "CALCANEUS", "HEEL", "TIBIA", "FIBULA", "TIBFIB", "LEG", "KNEE", "PATELLA", "FEMUR",
    "THIGH", "HIP", "PELVI", "SACRUM", "COCCYX", "SKULL", "HEAD", "FACIAL", "NASAL", "NOSE", "SINUS", "ORBIT", "JAW",
    "MANDIB", "TEETH", "TOOTH", "DENTAL", "NECK", "CSPINE", "C SPINE", "CERVICAL", "LSPINE", "L SPINE", "LUMBAR",
    "SSPINE", "ABDOM", "KUB", "KIDNEY", "BLADDER", "EXTREMIT", "BREAST", "MAMMA",
    "MANO", "MaO", "MANI", "MUnECA", "PUNHO", "POIGNET", "POLSO", "HANDGELENK", "CODO", "COTOVELO", "COUDE", "GOMITO",
    "ELLENBOGEN", "HOMBRO", "OMBRO", "EPAULE", "SPALLA", "SCHULTER", "PIE", "PeS", "PIED", "PIEDE", "FUSS", "VOET",
    "TOBILLO", "TORNOZELO", "CHEVILLE", "CAVIGLIA", "SPRUNGGELENK", "RODILLA", "JOELHO", "GENOU", "GINOCCHIO", "KNIE",
    "CADERA", "QUADRIL", "HANCHE", "ANCA", "HuFTE", "HUEFTE", "BACIN", "BACIA", "BASSIN", "BACINO", "PELVE", "BECKEN",
    "CRaNEO", "CRaNIO", "CRANE", "SCHaDEL", "SCHAEDEL", "CABEZA", "CABEcA", "CUELLO", "HWS", "LWS", "ABDOMEN", "ADDOME",
    "BAUCH", "BUIK", "SENOS", "WATERS",
    "手", "足", "膝", "腹", "頭", "头", "骨盆", "骨盤", "КИСТ", "СТОП", "КОЛЕН", "ЧЕРЕП", "ТАЗ", "ЖИВОТ",
)  # fmt: skip
SHORT = 5  # words of fewer letters must stand alone, but for a plural: LEG is not in COLLEGE

FRONTAL = (
    "AP", "PA", "FRONTAL", "FRONTALE", "FRONTALNA", "FRONT", "FRENTE", "FACE", "DV", "VD", "SAGITTAL STRAHLENGANG",
    "POSTEROANTERIOR", "ANTEROPOSTERIOR", "POSTERO ANTERIOR", "ANTERO POSTERIOR", "POSTERIOR ANTERIOR",
    "ANTERIOR POSTERIOR", "LLD", "RLD", "LORDOTIC", "SUPINE", "SUPINO", "LIEGEND", "VOORACHTERWAARTS", "DORSOVENTRAL",
    "VENTRODORSAL", "正面", "正位", "後前", "后前", "前後", "前后", "정면", "ПРЯМАЯ",
)  # fmt: skip
LATERAL = (
    "LAT", "LATERAL", "LATERALE", "LATERALES", "LATERALIS", "LATERAALI", "LL", "RL", "LLAT", "RLAT", "LTLAT", "RTLAT",
    "LATL", "LATR", "LATEROLATERAL", "LATEROLATERALE", "LATERO", "SEITLICH", "SEITL", "SEITE", "PERFIL", "PROFIL",
    "PROFILO", "PROFILE", "DWARS", "BOCZNE", "BOCZNA", "BOCNI", "BOK", "SIVU", "SIDOBILD", "YAN", "SIDE VIEW",
    "側面", "侧位", "側位", "측면", "БОКОВАЯ", "БОКОВОЙ",
)  # fmt: skip
OBLIQUE = (
    "OBLIQUE", "OBLIQUES", "OBL", "OBLICUA", "OBLIQUA", "SCHRAG", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO", "SWIMMERS",
    "TANGENTIAL", "AXILLARY", "斜位",
)  # fmt: skip
DECUBITUS = ("DECUBITUS", "DECUBITO", "DECUB", "DECUBITUSES")  # on the side, and seen from the front
CROSS_TABLE = ("XTABLE", "XTAB", "X TABLE", "CROSS TABLE", "CROSSTABLE")  # a lateral, where no word says otherwise
HORIZONTAL = ("HORIZONTAL BEAM",)  # of a patient who lies on the back or on the side
SIDES_IN_TEXT = ("LL", "RL", "YAN", "BOK", "FACE", "FRONT", "SEITE", "PROFILE", "DV", "VD")  # too short for prose


def plain(text: str) -> str:
    """Upper case, accents off, everything that is neither letter nor damage a space; P.A. and P-A become PA."""
    text = unicodedata.normalize("NFKD", text.upper())
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = re.sub(r"\b([AP])[./-]?\s?([AP])\b\.?", lambda found: found[1] + found[2], text)
    text = re.sub(r"\bL[./-]L\b\.?", "LL", text)
    return re.sub(r"[\W\d_]+", " ", text).strip()


def readings(text: str) -> list[str]:
    """The text, and what it would be if UTF-8 had been taken for Latin-1: a code string knows no character set."""
    found = [text]
    try:
        again = text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return found
    return found if again == text else [*found, again]


def view_in_words(text: str, prose: bool = False) -> str:
    """The view that a text names.

    Args:
        text: a value of ViewPosition, or a description.
        prose: a description, which may name both views of a study, and where two letters may mean anything.

    Returns:
        "frontal", "lateral", "other" (oblique, swimmer's, ...), or "" where it names none, or more than one.
    """
    for reading in readings(text):
        words = f" {plain(reading)} "

        def has(names: tuple[str, ...], words: str = words) -> bool:
            return any(_found(name, words, prose) for name in names)

        frontal, lateral = has(FRONTAL), has(LATERAL)
        if lateral and has(CROSS_TABLE + HORIZONTAL):  # lying on the back, the beam from the side
            return "lateral"
        if has(DECUBITUS) and lateral:  # lying on the side: LATERAL tells how the patient lies, not how the beam goes
            return "frontal"
        if has(OBLIQUE):
            return "" if prose and (frontal or lateral) else "other"
        if frontal != lateral:
            return "frontal" if frontal else "lateral"
        if not frontal and has(CROSS_TABLE) and not has(DECUBITUS):
            return "lateral"
    return ""


def _found(name: str, words: str, prose: bool) -> bool:
    if prose and name in SIDES_IN_TEXT and not (name in ("LL", "RL") and _is_chest(words)):
        return False
    if not name.isascii():
        return name in words
    return f" {name.upper()} " in words


def part_in_words(text: str) -> tuple[str, str]:
    """The body part that a text names.

    Returns:
        ("chest", word), also where other parts are named beside it; ("other", word); ("unknown", "") for words that
        no list holds; ("", "") for no word at all. The words are those of the lists.
    """
    if not re.sub(r"[\W\d_]+", "", text):
        return "", ""
    for kind, pattern, names in (("chest", _CHEST, CHEST), ("other", _OTHER, OTHER)):
        for reading in readings(text):
            for form in (f" {reading.upper()} ", f" {plain(reading)} "):
                found = pattern.search(form)
                if found:
                    return kind, names[int(found.lastgroup[1:])].upper()
    return "unknown", ""


def _is_chest(words: str) -> bool:
    return _CHEST.search(words) is not None


def _pattern(names: tuple[str, ...]) -> re.Pattern:
    """One pattern of all names, each a group of its own; longest first, so that ABDOMEN is not found as ABDOM."""
    parts = []
    for place, name in sorted(enumerate(names), key=lambda item: -len(item[1])):
        if not name.isascii():
            parts.append(f"(?P<n{place}>{re.escape(name)})")
            continue
        least = 1 if len(name) < SHORT else 0
        body = "".join(
            rf"(?:{letter.upper()}|[^A-Z\s]{{{least},4}})" if letter.islower() else letter for letter in name
        ).replace(" ", r"[\s_.-]*")
        end = r"(?:S|ES)?(?![A-Z])" if len(name) < SHORT else ""
        parts.append(f"(?P<n{place}>(?<![A-Z]){body}{end})")
    return re.compile("|".join(parts))


_CHEST, _OTHER = _pattern(CHEST), _pattern(OTHER)
