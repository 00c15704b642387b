-- what calibration and the engine did to the labels, per flag and part
select label_run, dataset, part, flag, count(*) as labels,
    round(100.0 * count(*) / any_value(part_labels), 2) as percent
from (
    select *, count(*) over (partition by label_run, dataset, part) as part_labels from labels
), unnest(flags) as flat(flag)
group by label_run, dataset, part, flag
order by label_run, dataset, part, labels desc
